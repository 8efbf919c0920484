from tortoise import migrations
from tortoise.migrations import operations as ops
import functools
from json import dumps, loads
from tortoise import fields


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="Alert",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("kind", fields.CharField(max_length=64)),
                ("opened", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("closed", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
                ("value", fields.FloatField()),
            ],
            options={
                "table": "fleet_alert",
                "app": "fleet",
                "pk_attr": "id",
                "table_description": "A condition of the fleet that someone was told about; without `closed` it still holds.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="ConnectionSample",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("at", fields.DatetimeField(db_index=True, auto_now=False, auto_now_add=True)),
                ("max_connections", fields.IntField()),
                ("total", fields.IntField()),
                ("active", fields.IntField()),
                ("idle", fields.IntField()),
                ("idle_in_transaction", fields.IntField()),
                (
                    "by_application",
                    fields.JSONField(encoder=functools.partial(dumps, separators=(",", ":")), decoder=loads),
                ),
            ],
            options={
                "table": "fleet_connection_sample",
                "app": "fleet",
                "pk_attr": "id",
                "table_description": "How many connections the server had at one moment, and whose they were.",
            },
            bases=["Model"],
        ),
        ops.CreateModel(
            name="Subscriber",
            fields=[
                ("id", fields.IntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("chat", fields.CharField(unique=True, max_length=255)),
                ("created", fields.DatetimeField(auto_now=False, auto_now_add=True)),
            ],
            options={
                "table": "fleet_subscriber",
                "app": "fleet",
                "pk_attr": "id",
                "table_description": "A chat that gets alerts.",
            },
            bases=["Model"],
        ),
    ]

from tortoise import migrations
from tortoise.migrations import operations as ops
from tortoise import fields


class Migration(migrations.Migration):
    dependencies = [("fleet", "0001_initial")]

    initial = False

    operations = [
        ops.CreateModel(
            name="Outgoing",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("chat", fields.CharField(max_length=255)),
                ("text", fields.TextField(unique=False)),
                ("created", fields.DatetimeField(auto_now=False, auto_now_add=True)),
                ("taken", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "fleet_outgoing",
                "app": "fleet",
                "pk_attr": "id",
                "table_description": "What the bot is to say in a chat; gone when it has been said.",
            },
            bases=["Model"],
        ),
    ]

from tortoise import migrations
from tortoise.migrations import operations as ops
from tortoise import fields


class Migration(migrations.Migration):
    initial = True

    operations = [
        ops.CreateModel(
            name="Reminder",
            fields=[
                ("id", fields.BigIntField(generated=True, primary_key=True, unique=True, db_index=True)),
                ("chat", fields.CharField(db_index=True, max_length=255)),
                ("text", fields.TextField(unique=False)),
                ("due", fields.DatetimeField(auto_now=False, auto_now_add=False)),
                ("fired", fields.DatetimeField(null=True, auto_now=False, auto_now_add=False)),
            ],
            options={
                "table": "reminder",
                "app": "reminder",
                "pk_attr": "id",
                "table_description": "Something that a chat wants to be told; with `fired` it has been.",
            },
            bases=["Model"],
        ),
    ]

from tortoise import migrations
from tortoise.migrations import operations as ops
from tortoise import fields
from tortoise.migrations.constraints import UniqueConstraint


class Migration(migrations.Migration):
    dependencies = [("fleet", "0002_outgoing")]

    initial = False

    operations = [
        ops.AddField(
            model_name="Alert",
            name="subject",
            field=fields.CharField(null=True, max_length=300),
        ),
        ops.AddConstraint(
            model_name="Alert",
            constraint=UniqueConstraint(
                fields=("kind", "subject"), name="fleet_alert_open", condition="closed IS NULL"
            ),
        ),
    ]

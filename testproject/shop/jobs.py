"""The shop's tasks: each is one step of an order."""

from __future__ import annotations

from decimal import Decimal

from django.core.mail import EmailMessage

from django_jobs import NonRetryable, Retry, TaskContext, task
from testproject.shop import environment, payments, sabotage
from testproject.shop.mail import KEY_HEADER, EmailBackend, file_name
from testproject.shop.models import Order, Parcel
from testproject.shop.payments import Charge

# The provider turns one order away three times at most, and loses answers besides.
PATIENT = Retry(max_attempts=8, delay=0.2, backoff="exponential", max_delay=2.0)


@task("shop.charge", label="Charge the customer", takes_context=True, retries=PATIENT)
def charge_card(context: TaskContext, reference: str, amount: Decimal) -> Charge:
    """Take the money. All tries of this step show the provider one idempotency key."""
    try:
        return payments.charge(
            sabotage.provider_key(context.idempotency_key), order=reference, amount=amount
        )
    except payments.ChargeRefused as error:
        raise NonRetryable(str(error)) from error


@task("shop.pack", label="Pack the parcel", retries=PATIENT)
def pack_parcel(order_id: int, pieces: int) -> str:
    """The code of the order's parcel; a second call finds the first one's."""
    parcel, _ = Parcel.objects.get_or_create(
        order_id=order_id, defaults={"code": f"P{order_id:08d}", "pieces": pieces}
    )
    return parcel.code


@task("shop.mail", label="Confirm by mail", takes_context=True, retries=PATIENT)
def send_confirmation(context: TaskContext, order_id: int, charge_id: str, parcel: str) -> str:
    """The name of the mail's file."""
    order = Order.objects.get(pk=order_id)
    key = context.idempotency_key
    name = file_name(order.reference, key)
    message = EmailMessage(
        subject=f"Your order {order.reference} is on its way",
        body=(
            f"Dear {order.customer or 'customer'},\n\n"
            f"thank you for your order. We charged {order.total} EUR ({charge_id})\n"
            f"and packed parcel {parcel}:\n\n  "
            + "\n  ".join(entry.strip() for entry in order.items.split("|"))
            + "\n"
        ),
        from_email="shop@example.com",
        to=[order.email],
        headers={
            KEY_HEADER: key,
            "X-Order": order.reference,
            "Message-ID": f"<{name}@shop.example.com>",
        },
    )
    outbox = EmailBackend(file_path=environment.data_folder() / "mails", seed=environment.seed())
    outbox.send_messages([message])
    return name

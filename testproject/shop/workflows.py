"""The way of an order: checked, charged, packed, confirmed."""

from __future__ import annotations

from typing import Any

from django_jobs import WorkflowContext, workflow
from testproject.shop import rules, sabotage
from testproject.shop.jobs import charge_card, pack_parcel, send_confirmation
from testproject.shop.models import Order, Rejection

SLUG = "shop.order"


@workflow(SLUG, label="Process an order")
def process_order(run: WorkflowContext, order_id: int) -> dict[str, Any]:
    """Charge a good order and send it, refuse a bad one."""
    steps = sabotage.step_options()
    order = run.inline("check", lambda: check_order(order_id), **steps)
    if order["state"] != Order.State.NEW:
        # A second job for an order that an earlier one has settled, long after its key expired.
        return {"outcome": order["state"]}
    if order["reason"]:
        run.inline("reject", lambda: reject_order(order_id, order["reason"], order["detail"]))
        run.log.warning("rejected: %s %s", order["reason"], order["detail"])
        return {"outcome": "rejected", "reason": order["reason"]}

    charge = run.task(
        "charge", charge_card, reference=order["reference"], amount=order["total"], **steps
    )
    run.progress(0.5, "paid")
    parcel = run.task("pack", pack_parcel, order_id=order_id, pieces=order["pieces"], **steps)
    run.task(
        "mail", send_confirmation, order_id=order_id, charge_id=charge.id, parcel=parcel, **steps
    )
    run.inline("close", lambda: close_order(order_id, charge.id))
    run.log.info("charged %s EUR, parcel %s", charge.amount, parcel)
    return {"outcome": "charged", "charge": charge.id, "amount": str(charge.amount)}


def check_order(order_id: int) -> dict[str, Any]:
    """What the later steps need to know, or the defect."""
    order = Order.objects.get(pk=order_id)
    found = {
        "reference": order.reference,
        "state": order.state,
        "total": str(order.total),
        "pieces": 0,
    }
    try:
        pieces = rules.check(order.items, order.email, order.shipping, order.total)
    except rules.BadOrder as bad:
        return {**found, "reason": bad.reason, "detail": bad.detail}
    return {**found, "pieces": pieces, "reason": "", "detail": ""}


def reject_order(order_id: int, reason: str, detail: str) -> None:
    """Note the defect; saying it twice changes nothing."""
    order = Order.objects.get(pk=order_id)
    Rejection.objects.update_or_create(
        row=order.row,
        defaults={"reference": order.reference, "reason": reason, "detail": detail},
    )
    Order.objects.filter(pk=order_id).update(state=Order.State.REJECTED)


def close_order(order_id: int, charge_id: str) -> None:
    Order.objects.filter(pk=order_id).update(state=Order.State.SHIPPED, charge_id=charge_id)

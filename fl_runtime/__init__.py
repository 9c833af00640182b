"""Federated-learning runtime: trains real models by a schedule that `schedopt` computed, and measures what happened.

Here live, in the order in which they may import one another: `timeline` (schedule to ordered events in virtual time),
`datasets`, `partition` and `drift` (data, how the devices hold it, how it changes), `models`, `training`
(local SGD), `aggregation` (merge rules and staleness weights), `policies` (schedulers that decide while running), `engine` and
`checkpoint` (the event loop and exact resume), `report`, `calibrate` and the `simulate` and `calibrate` commands.

The package needs the extra ``runtime`` (torch); `schedopt` never imports it.
"""

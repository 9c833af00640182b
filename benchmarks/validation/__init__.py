"""Does the bound steer training? Many schedules are trained, and what guides say of them is compared with what they gave."""

"""The devices that ACPI's tables lead to: power management, events, reset, panic, VM generation ID."""

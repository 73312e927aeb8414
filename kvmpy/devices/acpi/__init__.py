"""The devices that ACPI's tables lead to: power management, events, panic, VM generation ID."""

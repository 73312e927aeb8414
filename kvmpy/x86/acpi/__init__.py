"""ACPI's tables (ACPI 6.5): what a guest is told of its platform."""

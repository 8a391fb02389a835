"""Counts the instructions that ncnn executes on a 32-bit ARM core, without such a core: its wheel runs under QEMU."""

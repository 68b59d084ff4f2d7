"""The sub-commands of ``m3vit``, one module each, each with a click command called ``command``."""

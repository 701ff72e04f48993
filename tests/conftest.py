"""Every test runs with a host device per core, as the command line does."""

import vmaptune as vt

vt.prepare_devices()

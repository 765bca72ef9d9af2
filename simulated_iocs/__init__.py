"""Simulated beamline behind real Channel Access and pvAccess: stage, trajectory controller, area detector, optics.

The process variables are those of EPICS' motor record and areaDetector, so that the same devices drive real hardware.
The frames are the physics of `ptycho_bluesky.simulation`, or a recording; they are rendered before the detector is
armed and leave on a free-running clock: the detector never waits for anybody.
"""

"""Where a run lives: devices, the mesh, and the rules that divide arrays over it."""

"""How a run gets onto machines: a simulated pod here, TPU VMs, GKE, Slurm."""

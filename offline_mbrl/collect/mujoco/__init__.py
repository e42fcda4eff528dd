"""Data of gymnasium's MuJoCo tasks by D4RL's recipes."""

"""Pictures of what was made: masks over images, loss curves, result plots, one page of all."""

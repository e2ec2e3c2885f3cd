"""One training job: begin or resume, drive, work, save, roll back."""

"""What a trained model gets right and wrong: its answers by example, figures of them, calibration."""

"""The U-Net of Ho et al. 2020 and its descendants."""

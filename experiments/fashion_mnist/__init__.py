"""Fashion-MNIST over ten clients with local DP-SGD on scattering features: accuracy against epsilon."""

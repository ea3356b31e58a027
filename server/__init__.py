"""The server: composition root of a federation's server side, an ordinary Flower ServerApp."""

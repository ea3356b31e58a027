"""The client: composition root of a participant, an ordinary Flower ClientApp."""

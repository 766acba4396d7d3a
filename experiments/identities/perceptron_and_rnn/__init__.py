"""S2: a perceptron and a recurrent net, forward and backward (002_928120d7f21e0d45)."""

"""S4: tutorial solutions (004_7f024d66c3c7872e): the double sum over (t, k), powers of Jacobians, the LSTM."""

"""Networks leave the house: NIR, ONNX and torch files that are checked to give the same spikes before they stay."""

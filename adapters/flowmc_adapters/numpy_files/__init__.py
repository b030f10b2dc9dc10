"""Files of numpy: npy and npz."""

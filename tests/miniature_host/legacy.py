"""Reading of network pickles."""

import pickle


def load_network_pkl(file):
    return pickle.load(file)

"""What the host keeps apart from training."""

from . import util as util
from .util import EasyDict as EasyDict

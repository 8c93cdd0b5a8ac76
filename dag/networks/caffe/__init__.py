"""The paper's networks at full size, layer by layer as released for Caffe."""

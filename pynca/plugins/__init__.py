"""pynca in other programs: napari and 3D Slicer. Nothing else imports these modules."""

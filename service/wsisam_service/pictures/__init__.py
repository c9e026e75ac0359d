"""Pictures that come with a request: decoded (`picture`), and as slides of one level (`picture_slide`)."""

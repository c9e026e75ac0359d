package qupath.lib.roi;

import org.locationtech.jts.geom.Geometry;

/** Stand-in. */
public class RectangleROI extends GeometryROI {
    RectangleROI(Geometry geometry, int z, int t) {
        super(geometry, z, t);
    }
}

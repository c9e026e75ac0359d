package qupath.lib.roi;

import java.util.Arrays;
import java.util.List;
import org.locationtech.jts.geom.Geometry;
import qupath.lib.geom.Point2;
import qupath.lib.roi.interfaces.ROI;

/** Stand-in for every ROI class but the rectangle. */
public class GeometryROI implements ROI {
    private final Geometry geometry;
    private final int z;
    private final int t;

    GeometryROI(Geometry geometry, int z, int t) {
        this.geometry = geometry;
        this.z = z;
        this.t = t;
    }

    /** The ROI of a geometry; an exact rectangle of five positions becomes a RectangleROI, as QuPath does it. */
    public static ROI of(Geometry geometry, int z, int t) {
        boolean rectangle = geometry.getNumPoints() == 5 && geometry.isRectangle();
        return rectangle ? new RectangleROI(geometry, z, t) : new GeometryROI(geometry, z, t);
    }

    @Override
    public boolean isPoint() {
        return geometry.getDimension() == 0;
    }

    @Override
    public boolean isLine() {
        return geometry.getDimension() == 1;
    }

    @Override
    public boolean isArea() {
        return geometry.getDimension() == 2;
    }

    @Override
    public double getBoundsX() {
        return geometry.getEnvelopeInternal().getMinX();
    }

    @Override
    public double getBoundsY() {
        return geometry.getEnvelopeInternal().getMinY();
    }

    @Override
    public double getBoundsWidth() {
        return geometry.getEnvelopeInternal().getWidth();
    }

    @Override
    public double getBoundsHeight() {
        return geometry.getEnvelopeInternal().getHeight();
    }

    @Override
    public List<Point2> getAllPoints() {
        return Arrays.stream(geometry.getCoordinates()).map(c -> new Point2(c.x, c.y)).toList();
    }

    @Override
    public int getZ() {
        return z;
    }

    @Override
    public int getT() {
        return t;
    }

    @Override
    public Geometry getGeometry() {
        return geometry;
    }
}

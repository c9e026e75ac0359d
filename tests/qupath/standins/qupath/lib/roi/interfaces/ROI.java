package qupath.lib.roi.interfaces;

import java.util.List;
import org.locationtech.jts.geom.Geometry;
import qupath.lib.geom.Point2;

/** Stand-in. Full-resolution pixels, edge coordinates. */
public interface ROI {
    boolean isPoint();

    boolean isArea();

    boolean isLine();

    double getBoundsX();

    double getBoundsY();

    double getBoundsWidth();

    double getBoundsHeight();

    List<Point2> getAllPoints();

    int getZ();

    int getT();

    Geometry getGeometry();
}

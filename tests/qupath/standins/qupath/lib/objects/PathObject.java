package qupath.lib.objects;

import java.util.LinkedHashMap;
import java.util.Map;
import java.util.UUID;
import qupath.lib.measurements.MeasurementList;
import qupath.lib.objects.classes.PathClass;
import qupath.lib.roi.interfaces.ROI;

/** Stand-in for annotations and detections. */
public class PathObject {
    private final UUID id;
    private final boolean annotation;
    private final MeasurementList measurements = new MeasurementList();
    private final Map<String, String> metadata = new LinkedHashMap<>();
    private ROI roi;
    private PathClass pathClass;

    public PathObject(UUID id, ROI roi, boolean annotation) {
        this.id = id;
        this.roi = roi;
        this.annotation = annotation;
    }

    public UUID getID() {
        return id;
    }

    public boolean hasROI() {
        return roi != null;
    }

    public ROI getROI() {
        return roi;
    }

    /** As in QuPath, a new ROI throws the old one's measurements away. */
    public void setROI(ROI roi) {
        this.roi = roi;
        measurements.clear();
    }

    public boolean isAnnotation() {
        return annotation;
    }

    public PathClass getPathClass() {
        return pathClass;
    }

    public void setPathClass(PathClass pathClass) {
        this.pathClass = pathClass;
    }

    public MeasurementList getMeasurementList() {
        return measurements;
    }

    public Map<String, String> getMetadata() {
        return metadata;
    }
}

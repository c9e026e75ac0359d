package qupath.lib.io;

import com.google.gson.JsonArray;
import com.google.gson.JsonElement;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import java.io.IOException;
import java.io.InputStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.UUID;
import org.locationtech.jts.geom.Coordinate;
import org.locationtech.jts.geom.Geometry;
import org.locationtech.jts.geom.GeometryFactory;
import org.locationtech.jts.geom.LinearRing;
import org.locationtech.jts.geom.Polygon;
import org.locationtech.jts.geom.PrecisionModel;
import org.locationtech.jts.operation.valid.IsValidOp;
import org.locationtech.jts.precision.GeometryPrecisionReducer;
import qupath.lib.objects.PathObject;
import qupath.lib.objects.classes.PathClass;
import qupath.lib.roi.GeometryROI;

/**
 * Stand-in for QuPath's GeoJSON reader, stricter than any one of them: what 0.5, 0.6 or 0.7 refuses, or reads as an
 * object of no area, is refused here.
 */
public final class PathIO {
    private static final GeometryFactory FACTORY = new GeometryFactory();
    private static final PrecisionModel HUNDREDTHS = new PrecisionModel(100);

    private PathIO() {}

    public static List<PathObject> readObjectsFromGeoJSON(InputStream stream) throws IOException {
        JsonElement top = JsonParser.parseString(new String(stream.readAllBytes(), StandardCharsets.UTF_8));
        List<PathObject> objects = new ArrayList<>();
        for (JsonElement feature : featuresOf(top)) {
            if (!feature.isJsonNull()) {
                objects.add(object(feature.getAsJsonObject()));
            }
        }
        return objects;
    }

    private static JsonArray featuresOf(JsonElement top) {
        if (top.isJsonArray()) {
            return top.getAsJsonArray();
        }
        JsonArray features = new JsonArray();
        JsonObject object = top.getAsJsonObject();
        String type = object.has("type") ? object.get("type").getAsString() : "";
        if (type.equals("FeatureCollection")) {
            JsonElement members = object.get("features");
            return members == null || members.isJsonNull() ? features : members.getAsJsonArray();
        }
        if (type.equals("Feature")) {
            features.add(object);
        }
        return features; // anything else: no objects and no word, as in QuPath
    }

    private static PathObject object(JsonObject feature) {
        JsonObject properties = new JsonObject();
        if (feature.has("properties")) {
            require(feature.get("properties").isJsonObject(), "properties is null");
            properties = feature.getAsJsonObject("properties");
        }
        for (String name : List.of("objectType", "name")) {
            require(!properties.has(name) || !properties.get(name).isJsonNull(), name + " is null");
        }
        require(!feature.has("id") || !feature.get("id").isJsonNull(), "id is null");
        require(feature.has("geometry") && feature.get("geometry").isJsonObject(), "no geometry");
        JsonObject geometry = feature.getAsJsonObject("geometry");
        boolean annotation =
                !properties.has("objectType") || !properties.get("objectType").getAsString().equals("detection");
        PathObject object = new PathObject(
                idOf(feature), GeometryROI.of(geometry(geometry), plane(geometry, "z"), plane(geometry, "t")), annotation);
        classify(object, properties.get("classification"));
        if (properties.has("measurements") && !properties.get("measurements").isJsonNull()) {
            for (Map.Entry<String, JsonElement> entry : properties.getAsJsonObject("measurements").entrySet()) {
                object.getMeasurementList().put(entry.getKey(), entry.getValue().getAsFloat());
            }
        }
        if (properties.has("metadata")) {
            for (Map.Entry<String, JsonElement> entry : properties.getAsJsonObject("metadata").entrySet()) {
                if (entry.getValue().isJsonPrimitive()) { // null and nested values are dropped
                    object.getMetadata().put(entry.getKey(), entry.getValue().getAsString());
                }
            }
        }
        return object;
    }

    private static UUID idOf(JsonObject feature) {
        try {
            return UUID.fromString(feature.get("id").getAsString());
        } catch (RuntimeException ignored) {
            return UUID.randomUUID();
        }
    }

    private static int plane(JsonObject geometry, String axis) {
        if (!geometry.has("plane")) {
            return 0;
        }
        JsonObject plane = geometry.getAsJsonObject("plane");
        require(Set.of("c", "z", "t").containsAll(plane.keySet()), "unknown key in plane");
        return plane.has(axis) ? plane.get(axis).getAsInt() : 0;
    }

    private static void classify(PathObject object, JsonElement classification) {
        if (classification == null || classification.isJsonNull()) {
            return;
        }
        String name;
        if (classification.isJsonPrimitive()) {
            require(classification.getAsJsonPrimitive().isString(), "the class is a number");
            name = classification.getAsString();
        } else {
            JsonObject parts = classification.getAsJsonObject();
            require(parts.has("name") && parts.has("color"), "Unable to parse PathClass");
            name = parts.get("name").getAsString();
        }
        require(!name.isEmpty(), "the class is empty");
        object.setPathClass(PathClass.fromString(name));
    }

    private static Geometry geometry(JsonObject geometry) {
        require(geometry.has("coordinates"), "Json object does not contain coordinates");
        JsonArray coordinates = geometry.getAsJsonArray("coordinates");
        Geometry area;
        switch (geometry.get("type").getAsString()) {
            case "Polygon":
                area = polygon(coordinates);
                break;
            case "MultiPolygon":
                require(coordinates.size() > 1, "a MultiPolygon of one part");
                Polygon[] parts = new Polygon[coordinates.size()];
                for (int i = 0; i < parts.length; i++) {
                    parts[i] = polygon(coordinates.get(i).getAsJsonArray());
                }
                area = FACTORY.createMultiPolygon(parts);
                break;
            default:
                throw new IllegalArgumentException("No Geometry type found for object " + geometry);
        }
        require(!area.isEmpty(), "an empty geometry");
        require(new IsValidOp(area).isValid(), "Reduction failed, possible invalid input");
        Geometry reduced = GeometryPrecisionReducer.reduce(area, HUNDREDTHS);
        require(reduced.getArea() > 0, "nothing is left at 0.01 pixels");
        return reduced;
    }

    private static Polygon polygon(JsonArray rings) {
        require(rings.size() > 0, "an empty geometry");
        LinearRing[] read = new LinearRing[rings.size()];
        for (int i = 0; i < read.length; i++) {
            JsonArray positions = rings.get(i).getAsJsonArray();
            Coordinate[] ring = new Coordinate[positions.size()];
            for (int j = 0; j < ring.length; j++) {
                JsonArray position = positions.get(j).getAsJsonArray();
                ring[j] = new Coordinate(position.get(0).getAsDouble(), position.get(1).getAsDouble());
            }
            read[i] = FACTORY.createLinearRing(ring); // throws where it is not closed or too short
        }
        LinearRing[] holes = java.util.Arrays.copyOfRange(read, 1, read.length);
        return FACTORY.createPolygon(read[0], holes);
    }

    private static void require(boolean holds, String message) {
        if (!holds) {
            throw new IllegalArgumentException(message);
        }
    }
}

package qupath.lib.measurements;

import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** Stand-in. */
public class MeasurementList {
    private final Map<String, Double> values = new LinkedHashMap<>();

    public List<String> getNames() {
        return new ArrayList<>(values.keySet());
    }

    public double get(String name) {
        return values.getOrDefault(name, Double.NaN);
    }

    public void put(String name, double value) {
        values.put(name, value);
    }

    public void clear() {
        values.clear();
    }
}

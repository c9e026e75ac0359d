package qupath.lib.objects.classes;

import java.util.HashMap;
import java.util.Map;

/** Stand-in: one object per name, as in QuPath. */
public final class PathClass {
    private static final Map<String, PathClass> KNOWN = new HashMap<>();
    private final String name;

    private PathClass(String name) {
        this.name = name;
    }

    public static PathClass fromString(String name) {
        return KNOWN.computeIfAbsent(name, PathClass::new);
    }

    @Override
    public String toString() {
        return name;
    }
}

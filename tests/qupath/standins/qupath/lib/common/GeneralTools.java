package qupath.lib.common;

import java.net.URI;
import java.nio.file.Path;

/** Stand-in. */
public final class GeneralTools {
    private GeneralTools() {}

    /** The path of a file URI, null for any other. */
    public static Path toPath(URI uri) {
        return "file".equals(uri.getScheme()) ? Path.of(uri) : null;
    }
}

package qupath.lib.images;

import qupath.lib.images.servers.ImageServer;
import qupath.lib.objects.hierarchy.PathObjectHierarchy;

/** Stand-in. */
public record ImageData<T>(ImageServer<T> server, PathObjectHierarchy hierarchy) {
    public ImageServer<T> getServer() {
        return server;
    }

    public PathObjectHierarchy getHierarchy() {
        return hierarchy;
    }
}

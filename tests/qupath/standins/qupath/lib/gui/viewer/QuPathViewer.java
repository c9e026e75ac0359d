package qupath.lib.gui.viewer;

import java.awt.Rectangle;
import java.awt.Shape;
import qupath.lib.images.servers.ImageServer;

/** Stand-in: a viewer that stands still. */
public record QuPathViewer(ImageServer<?> server, Rectangle displayed, double downsample) {
    public ImageServer<?> getServer() {
        return server;
    }

    public Shape getDisplayedRegionShape() {
        return displayed;
    }

    public double getDownsampleFactor() {
        return downsample;
    }
}

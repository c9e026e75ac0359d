package qupath.lib.regions;

/** Stand-in. Position and size in full-resolution pixels. */
public record RegionRequest(String path, double downsample, int x, int y, int width, int height, int z, int t) {
    public static RegionRequest createInstance(
            String path, double downsample, int x, int y, int width, int height, int z, int t) {
        return new RegionRequest(path, downsample, x, y, width, height, z, t);
    }

    public int getX() {
        return x;
    }

    public int getY() {
        return y;
    }

    public int getWidth() {
        return width;
    }

    public int getHeight() {
        return height;
    }
}

package qupath.lib.images.servers;

/** Stand-in; NaN where the pixel size is unknown. */
public record PixelCalibration(double mpp) {
    public double getAveragedPixelSizeMicrons() {
        return mpp;
    }
}

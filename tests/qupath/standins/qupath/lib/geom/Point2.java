package qupath.lib.geom;

/** Stand-in. */
public record Point2(double x, double y) {
    public double getX() {
        return x;
    }

    public double getY() {
        return y;
    }
}

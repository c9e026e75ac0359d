package qupath.lib.images.servers;

import java.awt.Graphics2D;
import java.awt.RenderingHints;
import java.awt.image.BufferedImage;
import java.io.IOException;
import java.net.URI;
import java.nio.file.Path;
import java.util.Collection;
import java.util.List;
import javax.imageio.ImageIO;
import qupath.lib.regions.RegionRequest;

/** Stand-in: one picture file, shown with the size and pixel size that the scenario says. */
public class ImageServer<T> {
    private final Path file;
    private final int width;
    private final int height;
    private final double mpp;
    private final boolean rgb;

    public ImageServer(Path file, int width, int height, double mpp, boolean rgb) {
        this.file = file;
        this.width = width;
        this.height = height;
        this.mpp = mpp;
        this.rgb = rgb;
    }

    public int getWidth() {
        return width;
    }

    public int getHeight() {
        return height;
    }

    public Collection<URI> getURIs() {
        return List.of(file.toUri());
    }

    public String getPath() {
        return "StandIn: " + file.toUri();
    }

    public boolean isRGB() {
        return rgb;
    }

    public PixelCalibration getPixelCalibration() {
        return new PixelCalibration(mpp);
    }

    public BufferedImage readRegion(RegionRequest request) throws IOException {
        BufferedImage part = ImageIO.read(file.toFile())
                .getSubimage(request.x(), request.y(), request.width(), request.height());
        int w = (int) Math.round(request.width() / request.downsample());
        int h = (int) Math.round(request.height() / request.downsample());
        BufferedImage out = new BufferedImage(w, h, BufferedImage.TYPE_INT_RGB);
        Graphics2D graphics = out.createGraphics();
        graphics.setRenderingHint(RenderingHints.KEY_INTERPOLATION, RenderingHints.VALUE_INTERPOLATION_BILINEAR);
        graphics.drawImage(part, 0, 0, w, h, null);
        graphics.dispose();
        return out;
    }

    public void close() {}
}

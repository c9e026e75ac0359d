package standins;

import com.google.gson.Gson;
import com.google.gson.GsonBuilder;
import groovy.lang.GroovyShell;
import java.awt.Rectangle;
import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.UUID;
import org.locationtech.jts.io.ParseException;
import org.locationtech.jts.io.WKTReader;
import qupath.fx.dialogs.Dialogs;
import qupath.lib.gui.scripting.QPEx;
import qupath.lib.gui.viewer.QuPathViewer;
import qupath.lib.images.ImageData;
import qupath.lib.images.servers.ImageServer;
import qupath.lib.objects.PathObject;
import qupath.lib.objects.classes.PathClass;
import qupath.lib.objects.hierarchy.PathObjectHierarchy;
import qupath.lib.projects.Project;
import qupath.lib.projects.ProjectImageEntry;
import qupath.lib.roi.GeometryROI;

/**
 * Runs Groovy scripts on scenarios: for each folder named on standard input, its script.groovy on its scenario.json,
 * into its outcome.json, and then a line on standard output that says "done". The outcome has the scenario's form,
 * with what the script did, so that it can be the next scenario.
 */
public final class RunScript {
    /** An object; `wkt` is its geometry in full-resolution pixels. */
    static class ObjectState {
        String id;
        String wkt;
        String pathClass;
        boolean annotation = true;
        boolean selected;
        boolean rectangle;
        int z;
        Map<String, String> metadata = new LinkedHashMap<>();
        Map<String, Double> measurements = new LinkedHashMap<>();
    }

    /** An image; `events` are the hierarchy's, one for each undo step. */
    static class ImageState {
        String name;
        String file;
        int width;
        int height;
        Double mpp;
        boolean rgb = true;
        List<ObjectState> objects = new ArrayList<>();
        int events;
        int saves;
    }

    /** `open` is the image in the viewer, `stopAfterSaves` interrupts the script as "Kill running script" does. */
    static class Scenario {
        List<ImageState> images = new ArrayList<>();
        Integer open;
        boolean project;
        boolean window;
        Integer stopAfterSaves;
        double[] displayed;
        double downsample = 1;
        List<String> shown = new ArrayList<>();
        String error;
    }

    private static int saves;

    private RunScript() {}

    public static void main(String[] args) throws Exception {
        BufferedReader folders = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        for (String folder = folders.readLine(); folder != null; folder = folders.readLine()) {
            run(Path.of(folder));
            System.out.println("done");
        }
    }

    private static void run(Path folder) throws Exception {
        Scenario scenario = new Gson().fromJson(Files.readString(folder.resolve("scenario.json")), Scenario.class);
        saves = 0;
        Dialogs.SHOWN.clear();
        List<ProjectImageEntry<Object>> entries = new ArrayList<>();
        for (ImageState image : scenario.images) {
            entries.add(entry(image, scenario.stopAfterSaves, Thread.currentThread()));
        }
        QPEx.open = scenario.open == null ? null : entries.get(scenario.open);
        QPEx.project = scenario.project ? new Project<>(entries) : null;
        QPEx.quPath = scenario.window ? new Object() : null;
        QPEx.viewer = null;
        if (scenario.displayed != null) {
            double[] d = scenario.displayed;
            Rectangle shown = new Rectangle((int) d[0], (int) d[1], (int) d[2], (int) d[3]);
            QPEx.viewer = new QuPathViewer(QPEx.getCurrentServer(), shown, scenario.downsample);
        }
        scenario.error = null;
        try {
            new GroovyShell().evaluate(Files.readString(folder.resolve("script.groovy")), "Script1.groovy"); // as QuPath does
        } catch (Exception e) {
            scenario.error = e.toString();
            e.printStackTrace();
        }
        Thread.interrupted();
        for (int i = 0; i < entries.size(); i++) {
            outcome(scenario.images.get(i), entries.get(i));
        }
        scenario.shown = Dialogs.SHOWN;
        Files.writeString(folder.resolve("outcome.json"), new GsonBuilder().setPrettyPrinting().create().toJson(scenario));
    }

    private static ProjectImageEntry<Object> entry(ImageState image, Integer stopAfterSaves, Thread script)
            throws IOException, ParseException {
        double mpp = image.mpp == null ? Double.NaN : image.mpp;
        ImageServer<Object> server =
                new ImageServer<>(Path.of(image.file), image.width, image.height, mpp, image.rgb);
        PathObjectHierarchy hierarchy = new PathObjectHierarchy();
        List<PathObject> objects = new ArrayList<>();
        List<PathObject> selected = new ArrayList<>();
        for (ObjectState state : image.objects) {
            PathObject object = new PathObject(
                    UUID.fromString(state.id), GeometryROI.of(new WKTReader().read(state.wkt), state.z, 0), state.annotation);
            object.setPathClass(state.pathClass == null ? null : PathClass.fromString(state.pathClass));
            object.getMetadata().putAll(state.metadata);
            state.measurements.forEach(object.getMeasurementList()::put);
            objects.add(object);
            if (state.selected) {
                selected.add(object);
            }
        }
        hierarchy.addObjects(objects);
        hierarchy.getSelectionModel().setSelectedObjects(selected, null);
        return new ProjectImageEntry<>(image.name, new ImageData<>(server, hierarchy), () -> {
            if (stopAfterSaves != null && ++saves == stopAfterSaves) {
                script.interrupt();
            }
        });
    }

    private static void outcome(ImageState image, ProjectImageEntry<Object> entry) {
        PathObjectHierarchy hierarchy = entry.readImageData().getHierarchy();
        image.events = hierarchy.events() - 1; // one was the scenario's own
        image.saves = entry.saves();
        image.objects.clear();
        for (PathObject object : hierarchy.getAllObjects(false)) {
            ObjectState state = new ObjectState();
            state.id = object.getID().toString();
            state.wkt = object.getROI().getGeometry().toText();
            state.z = object.getROI().getZ();
            state.rectangle = object.getROI() instanceof qupath.lib.roi.RectangleROI;
            state.pathClass = object.getPathClass() == null ? null : object.getPathClass().toString();
            state.annotation = object.isAnnotation();
            state.selected = hierarchy.getSelectionModel().getSelectedObjects().contains(object);
            state.metadata.putAll(object.getMetadata());
            for (String name : object.getMeasurementList().getNames()) {
                state.measurements.put(name, object.getMeasurementList().get(name));
            }
            image.objects.add(state);
        }
    }
}

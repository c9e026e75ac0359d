package qupath.lib.gui.scripting;

import java.util.Collection;
import java.util.List;
import qupath.lib.gui.viewer.QuPathViewer;
import qupath.lib.images.ImageData;
import qupath.lib.images.servers.ImageServer;
import qupath.lib.objects.PathObject;
import qupath.lib.objects.hierarchy.PathObjectHierarchy;
import qupath.lib.projects.Project;
import qupath.lib.projects.ProjectImageEntry;

/** Stand-in for the static methods of QP and QPEx; the public fields are set by the scenario. */
public final class QPEx {
    public static ProjectImageEntry<Object> open;
    public static Project<Object> project;
    public static QuPathViewer viewer;
    public static Object quPath;

    private QPEx() {}

    public static ImageData<Object> getCurrentImageData() {
        return open == null ? null : open.readImageData();
    }

    public static ImageServer<Object> getCurrentServer() {
        return open == null ? null : getCurrentImageData().getServer();
    }

    public static PathObjectHierarchy getCurrentHierarchy() {
        return open == null ? null : getCurrentImageData().getHierarchy();
    }

    public static Collection<PathObject> getSelectedObjects() {
        return open == null ? List.of() : getCurrentHierarchy().getSelectionModel().getSelectedObjects();
    }

    public static Project<Object> getProject() {
        return project;
    }

    public static ProjectImageEntry<Object> getProjectEntry() {
        return project == null ? null : open;
    }

    public static QuPathViewer getCurrentViewer() {
        return viewer;
    }

    public static Object getQuPath() {
        return quPath;
    }
}

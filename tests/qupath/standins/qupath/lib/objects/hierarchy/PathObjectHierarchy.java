package qupath.lib.objects.hierarchy;

import java.util.ArrayList;
import java.util.Collection;
import java.util.LinkedHashSet;
import java.util.List;
import java.util.Set;
import qupath.lib.objects.PathObject;

/** Stand-in: a flat list that counts its events, each of which is one undo step in QuPath. */
public class PathObjectHierarchy {
    private final List<PathObject> objects = new ArrayList<>();
    private final SelectionModel selection = new SelectionModel();
    private int events;

    public synchronized void addObjects(Collection<? extends PathObject> added) {
        objects.addAll(added);
        events++;
    }

    public synchronized void updateObject(PathObject object, boolean isChanging) {
        if (!objects.contains(object)) {
            throw new IllegalArgumentException("not in the hierarchy");
        }
        events++;
    }

    public synchronized List<PathObject> getAllObjects(boolean includeRoot) {
        return new ArrayList<>(objects);
    }

    public SelectionModel getSelectionModel() {
        return selection;
    }

    public int events() {
        return events;
    }

    /** Stand-in. */
    public static class SelectionModel {
        private final Set<PathObject> selected = new LinkedHashSet<>();

        public void setSelectedObjects(Collection<? extends PathObject> objects, PathObject main) {
            selected.clear();
            selected.addAll(objects);
        }

        public Collection<PathObject> getSelectedObjects() {
            return selected;
        }
    }
}

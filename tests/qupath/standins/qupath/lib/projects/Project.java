package qupath.lib.projects;

import java.util.List;

/** Stand-in. */
public record Project<T>(List<ProjectImageEntry<T>> entries) {
    public List<ProjectImageEntry<T>> getImageList() {
        return entries;
    }

    public void syncChanges() {}
}

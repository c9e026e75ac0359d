package qupath.lib.projects;

import qupath.lib.images.ImageData;

/** Stand-in. What is saved is counted; `afterSave` lets a test stop the script there. */
public class ProjectImageEntry<T> {
    private final String name;
    private final ImageData<T> data;
    private final Runnable afterSave;
    private int saves;

    public ProjectImageEntry(String name, ImageData<T> data, Runnable afterSave) {
        this.name = name;
        this.data = data;
        this.afterSave = afterSave;
    }

    public String getImageName() {
        return name;
    }

    public ImageData<T> readImageData() {
        return data;
    }

    public void saveImageData(ImageData<T> imageData) {
        saves++;
        afterSave.run();
    }

    public int saves() {
        return saves;
    }
}

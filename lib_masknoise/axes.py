def override(scene, overrides):
    return scene

"""The playground: a scene in the browser, in which policies act and a person interferes."""

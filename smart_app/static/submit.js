document.getElementById("authorize").submit();
